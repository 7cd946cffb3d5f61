"""What other tools load of demur, by the names that they know it by."""
