"""Actions that every worker has unless its pool says `stock_actions = false`."""
