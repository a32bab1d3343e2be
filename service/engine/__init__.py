"""The engine: resident weights, rows and one step loop. torch for serving lives here and nowhere else."""
