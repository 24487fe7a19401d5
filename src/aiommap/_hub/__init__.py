"""What many open files share."""
