"""Adapters of sona_stream: backends, embedders and plug-ins, loaded through entry points."""
