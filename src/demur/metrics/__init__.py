"""Numbers of many records: pure functions of scores, labels and groups, and their intervals."""
