"""Which size, how many tokens and rounds, within which limits? A law with budgets, solved and asked."""
