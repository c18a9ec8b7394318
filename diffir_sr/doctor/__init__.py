"""`diffir doctor`: what is wrong with data or with an installation, all of it in one report."""
