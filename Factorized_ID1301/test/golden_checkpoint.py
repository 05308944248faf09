"""A checkpoint whose variables follow the golden rule, moving statistics included."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import tensorflow.compat.v1 as tf

import golden_rules
import model_def
import npu_session


def write(folder, K=8, step=7):
    """Saves the network with K landmarks as <folder>/model-<step>; returns the folder (str)."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        model_def.create_variables(K, seed=0)
        global_step = tf.train.get_or_create_global_step()
        for variable in tf.global_variables():
            if variable is global_step:
                variable.load(step, session)
                continue
            name, shape = variable.op.name, variable.shape.as_list()
            variable.load(golden_rules.variable(name, shape, golden_rules.find_seed()), session)
        npu_session.Checkpoints(str(folder)).save(session, f"model-{step}")
    return str(folder)
