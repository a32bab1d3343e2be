"""Pictures as numbers, and what the numbers of two arms say of each other. No torch."""
