"""SavedModels that take raw text: their signatures, their export, and a client for them."""
