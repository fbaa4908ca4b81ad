"""A server that speaks as OpenAI's chat completions do, for one bundle."""
