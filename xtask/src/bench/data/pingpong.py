# Two processes that hand a counter to each other.
import os, sys
n = int(sys.argv[1])
there, back = os.pipe(), os.pipe()
if os.fork() == 0:
    for _ in range(n):
        b = os.read(there[0], 1)
        os.write(back[1], bytes([(b[0] + 1) & 255]))
    os._exit(0)
b = b'\0'
for _ in range(n):
    os.write(there[1], b)
    b = os.read(back[0], 1)
os.wait()
print(n, b[0])
