import tensorflow as tf, numpy as np
def test_x(tiny, corpus, finished):
    from cocolm_tf.training.build import build_pretrainer, build_optimizer
    from cocolm_tf.tokenization.vocabulary import load_vocabulary
    from cocolm_tf.training.pretraining import _open_data
    config=tiny()
    tok=load_vocabulary(corpus.vocabulary)
    data=_open_data(corpus.validation,tok,config)
    ds=data.validation_batches(4)
    print(data.sequences)
    for b in ds: print({k:(v.shape) for k,v in b.items()}, b["masked_weights"].numpy().sum(), (b["crop_padding_mask"].numpy().sum(1)), b["padding_mask"].numpy().sum(1))
    from cocolm_tf.training.preset import load_preset
    p=build_pretrainer(config,tok.mask_token_id)
    load_preset(p, str(finished.model_dir/"preset"))
    p.compile(build_optimizer(config.optimizer,10,p))
    for b in ds:
        l,m=p.compute(b, training=False)
        print({k:float(v) for k,v in l.items()}, {k:(float(a),float(b)) for k,(a,b) in m.items()})
    print(p.evaluate(ds, verbose=0))
    print([ (n,[v.numpy() for v in m.variables]) for n,m in p._meters.items()])
