"""`t3 playground`: a page on which to see what the unlearned model does, token by token. `trace` computes, `app` shows."""
