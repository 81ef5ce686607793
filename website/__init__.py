"""What makes the web site and the reference pages of docs/."""
