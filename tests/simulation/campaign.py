"""Many simulated scenarios."""
import sys, time
from simulator.world import run_seed
if __name__ == "__main__":
    if sys.argv[1] == "show":
        print(run_seed(int(sys.argv[2]), trace=print)); raise SystemExit
    first, n = int(sys.argv[1]), int(sys.argv[2])
    t=time.time()
    for seed in range(first, first+n):
        o = run_seed(seed)
        if o.violation or n<20: print(o, f"{time.time()-t:.1f}s", flush=True)
    print("total", time.time()-t)
