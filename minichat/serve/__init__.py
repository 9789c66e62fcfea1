"""An HTTP server that speaks OpenAI's protocol, in front of one engine. FastAPI and uvicorn are imported with it."""
