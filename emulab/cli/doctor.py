"""``emulab doctor``."""
