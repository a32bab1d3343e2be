"""Programs that use Darkroom as its users do."""
