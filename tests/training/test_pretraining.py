import time
def test_x(finished, pretrain_on):
    print((finished.model_dir/"metrics.jsonl").read_text())
    import os
    os.system(f"find {finished.model_dir}")
    t=time.time()
    import signal
    signal.alarm(60)
    pretrain_on(finished.config, finished.model_dir)
    print("again", time.time()-t)
    print((finished.model_dir/"metrics.jsonl").read_text())
