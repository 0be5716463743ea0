"""Platform-specific speed-ups. Each has a portable alternative, which is used where the speed-up is not
available.

The choice has no effect other than speed.
"""
