"""`t3 playground`: a page that shows what the unlearned model does, token by token.

`trace` computes, `runs` holds what each browser tab asked for, `page` writes HTML, `app` serves it.
"""
