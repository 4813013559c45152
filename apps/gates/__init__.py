"""Gates that a pipeline teaches while it makes something: no data are needed but prompts."""
