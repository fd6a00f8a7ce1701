"""Checks each kernel where it runs before it is used there.

`families`: what is checked. `cases`: on which inputs. `child`: the process that runs them. `run`: starts that process
and survives it. `verdicts`: what was found, kept in the cache folder, and asked for by the dispatcher.
"""
