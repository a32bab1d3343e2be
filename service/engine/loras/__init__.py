"""LoRAs in the engine, from a file's bytes to weights in force: `residency` brings them, `weights` applies them."""
