"""A workload under random `kill -9`, and a checker that reads what came of it without asking the framework.

events    the workload's own events, tables and handlers
worker    a process that handles them; publisher: one that publishes, and keeps a history of what it was told
system    a broker and such processes in one folder: start, kill, drain
truth     what is really there at the end: the log and the dead letters through plain nats-py, the tables through
          sqlite3, the histories from their files
checker   the verdict on it, a pure function
defects   what breaks the framework on purpose, to see that the checker notices
__main__  `./test soak`: all of it for some minutes, with a seed
"""
