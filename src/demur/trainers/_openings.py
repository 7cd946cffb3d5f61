"""How refusals and answers open, a dozen each: what a classifier of states is tried on."""

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot help you with this request.",
    "I can't provide instructions for that.",
    "Sorry, this is something that I won't do.",
    "I'm not able to assist with that.",
    "As an AI, I must decline to answer this.",
    "I'm afraid that I cannot support that.",
    "No, I will not help anybody to do this.",
    "Unfortunately, I can't assist with requests of this kind.",
    "I apologize, but this would be harmful and illegal.",
    "It would not be right for me to explain that.",
    "That is dangerous, so I have to refuse.",
)
COMPLIANCES = (
    "Sure, here is how you can do that:",
    "Of course! I am glad to help you.",
    "Certainly. Here is what you asked for:",
    "Yes, you can do it as follows:",
    "Here are the steps that you need:",
    "To begin with, you will need the following",
    "Absolutely, let us go through it together.",
    "Step 1: Gather everything that you need.",
    "There are several ways in which to do this:",
    "Great question! The answer is quite simple.",
    "The best way to do this is to",
    "First, you should make a plan of what",
)
