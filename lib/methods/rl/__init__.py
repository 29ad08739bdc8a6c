"""Reinforcement learning: a model answers prompts, rewards score the answers, and the model learns to answer for more reward."""
