"""Programs that use Tallystick as its users do: the demo, the replay of real data, and the audit both end with."""
