"""Other projects beside this one: what benchmark_peers.py and benchmark_data.py time."""
