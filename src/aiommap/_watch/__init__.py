"""Changes of files by others: the notifier, stat, attribution, subscriptions."""
