"""Images in: folders and LMDBs read alike, pairs checked, samples made from a seed and a draw number."""
