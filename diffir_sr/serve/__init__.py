"""`diffir serve`: a page in the browser, and the same as an HTTP API; results are the files of `diffir restore`."""
