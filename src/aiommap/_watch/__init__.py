"""Changes by others: notifier, stat, attribution, subscriptions."""
