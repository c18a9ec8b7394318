"""Files: atomic writing, reading and writing images, safe reading of LMDBs, shards, locks."""
