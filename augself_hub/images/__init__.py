"""Images of any origin: their structure, and what reading them may cost."""
