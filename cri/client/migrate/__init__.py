"""`crisp migrate`: takes over containerd's or CRI-O's configuration and images."""
