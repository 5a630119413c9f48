"""A to-do list that is handled by messages: the reference application of Tidings.

events.py     what happens
handlers.py   who does something about it; run it with `tidings run todo.handlers:bus`
web.py        the page and the API; serve it with `uvicorn todo.web:app`
database.py   where the items are
"""
