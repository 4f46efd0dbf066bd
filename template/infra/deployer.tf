# The account that continuous integration deploys as. It can bring new code into the function that is
# there, and nothing else: what is around the function is changed by a person, with `just deploy`.

resource "google_service_account" "deployer" {
  account_id   = "${local.account_prefix}-deployer"
  display_name = "Deploys ${var.function_name}"

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_iam_member" "deployer_creates_sources" {
  bucket = google_storage_bucket.sources.name
  role   = "roles/storage.objectCreator"
  member = google_service_account.deployer.member
}

resource "google_cloudfunctions2_function_iam_member" "deployer_updates_function" {
  cloud_function = google_cloudfunctions2_function.function.name
  location       = var.region
  role           = "roles/cloudfunctions.developer"
  member         = google_service_account.deployer.member
}

# Whoever deploys a function lets it act as its account, and lets the build act as its own.
resource "google_service_account_iam_member" "deployer_uses_function_account" {
  service_account_id = google_service_account.function.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.deployer.member
}

resource "google_service_account_iam_member" "deployer_uses_build_account" {
  service_account_id = google_service_account.build.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.deployer.member
}

output "deployer_service_account" {
  description = "The account that continuous integration deploys as."
  value       = google_service_account.deployer.email
}
