"""The page and its API: FastAPI over a model that prediction/live.py serves."""
