"""Widgets made from the fields of a policy: a new policy or setting needs no line here."""

from dataclasses import fields

import streamlit as st

from analysis.policies import POLICIES, Policy


def policy_controls(key: str, policy: Policy) -> Policy:
    """Widgets for a policy and its settings, as they stand at first; returns what the person chose."""
    names = list(POLICIES)
    name = st.selectbox(
        "Policy",
        names,
        index=names.index(policy.name),
        format_func=lambda n: POLICIES[n].title,
        key=f"{key}-policy",
    )
    chosen = POLICIES[name]
    st.caption(" ".join(chosen.__doc__.split("\n\n")[0].split()))
    values = {}
    for f in fields(chosen):
        rule = f.metadata
        begun = getattr(policy, f.name) if isinstance(policy, chosen) else f.default
        label, widget = f.name.capitalize(), f"{key}-{name}-{f.name}"
        if rule["choices"]:
            options = list(rule["choices"])
            values[f.name] = st.selectbox(label, options, index=options.index(begun), help=rule["help"], key=widget)
        else:
            values[f.name] = st.number_input(
                label, min_value=rule["low"], max_value=rule["high"], value=begun, step=1, help=rule["help"], key=widget
            )
    return chosen(**values)
