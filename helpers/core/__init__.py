import gc

gc.disable()  # until all is imported (`helpers/__init__.py`): looking for garbage there takes a third of the time
