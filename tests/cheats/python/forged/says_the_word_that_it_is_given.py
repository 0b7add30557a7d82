import os
import select

for descriptor in range(3, 64):
    try:
        os.write(descriptor, b"?")
        if select.select([descriptor], [], [], 0.05)[0]:
            os.write(descriptor, os.read(descriptor, 64))
    except (OSError, ValueError):
        pass
os._exit(0)
