"""What every part of one open file shares."""
