"""Data: folders, LMDBs and shards, checks of pairs, and samples determined by seed and draw number."""
