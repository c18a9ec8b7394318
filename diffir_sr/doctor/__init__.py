"""`diffir doctor`: checks data and the installation, and reports all problems at once."""
