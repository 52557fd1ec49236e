"""Who is calling: a credential in, a principal or nothing out."""
