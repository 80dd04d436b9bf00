"""What every Hansa process shares."""
