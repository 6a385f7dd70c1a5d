"""systemd as the keeper of cgroups."""
