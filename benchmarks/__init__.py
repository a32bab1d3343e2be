"""What Darkroom costs beside what one would write without it. See README.md."""
