"""Everything at once, killed and frozen at random; what can't have happened is found afterwards."""
